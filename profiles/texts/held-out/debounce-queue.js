'use strict';

/**
 * Collects calls by key and hands them on together, once a key has been quiet for a while.
 * Saving a document on every keystroke becomes one request when the typist pauses.
 */
class DebounceQueue {
  /**
   * @param {(key: string, items: unknown[]) => Promise<void>} handler takes one batch
   * @param {{ quietMs?: number, maxItems?: number }} [options]
   */
  constructor(handler, { quietMs = 300, maxItems = 50 } = {}) {
    if (typeof handler !== 'function') {
      throw new TypeError('handler must be a function');
    }
    this.handler = handler;
    this.quietMs = quietMs;
    this.maxItems = maxItems;
    this.pending = new Map();
    this.running = new Set();
  }

  /** Adds an item; the returned promise settles when its batch has been handled. */
  push(key, item) {
    let batch = this.pending.get(key);
    if (!batch) {
      batch = { items: [], timer: null };
      batch.done = new Promise((resolve, reject) => {
        batch.resolve = resolve;
        batch.reject = reject;
      });
      this.pending.set(key, batch);
    }
    batch.items.push(item);
    clearTimeout(batch.timer);
    if (batch.items.length >= this.maxItems) {
      this.flush(key);
    } else {
      batch.timer = setTimeout(() => this.flush(key), this.quietMs);
    }
    return batch.done;
  }

  /** Handles the batch of a key now, quiet or not. */
  flush(key) {
    const batch = this.pending.get(key);
    if (!batch) {
      return Promise.resolve();
    }
    this.pending.delete(key);
    clearTimeout(batch.timer);
    this.running.add(batch.done);
    Promise.resolve()
      .then(() => this.handler(key, batch.items))
      .then(batch.resolve, batch.reject)
      .finally(() => this.running.delete(batch.done));
    return batch.done;
  }

  /** Flushes every key, and waits for what is still on its way. Never rejects. */
  async close() {
    for (const key of [...this.pending.keys()]) {
      this.flush(key);
    }
    const results = await Promise.allSettled(this.running);
    return results.filter((result) => result.status === 'rejected').length;
  }

  get size() {
    let count = 0;
    for (const { items } of this.pending.values()) {
      count += items.length;
    }
    return count;
  }
}

module.exports = { DebounceQueue };
