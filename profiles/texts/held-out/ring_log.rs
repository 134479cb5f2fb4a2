//! A log of fixed size in memory: the newest records push the oldest ones out.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub at: Duration,
    pub level: Level,
    pub message: String,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at.as_secs_f64();
        write!(f, "[{seconds:>10.3}] {:?}: {}", self.level, self.message)
    }
}

/// Holds records up to a number of bytes of text.
pub struct RingLog {
    records: VecDeque<Record>,
    used_bytes: usize,
    max_bytes: usize,
    dropped: u64,
}

impl RingLog {
    pub fn with_capacity(max_bytes: usize) -> Self {
        RingLog {
            records: VecDeque::new(),
            used_bytes: 0,
            max_bytes,
            dropped: 0,
        }
    }

    /// Appends a record. One that is larger than the whole log is counted as dropped.
    pub fn push(&mut self, record: Record) {
        let size = record.message.len();
        if size > self.max_bytes {
            self.dropped += 1;
            return;
        }
        while self.used_bytes + size > self.max_bytes {
            if let Some(oldest) = self.records.pop_front() {
                self.used_bytes -= oldest.message.len();
                self.dropped += 1;
            }
        }
        self.used_bytes += size;
        self.records.push_back(record);
    }

    /// Records of at least `level`, the oldest first.
    pub fn at_least(&self, level: Level) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.level >= level)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seconds: u64, message: &str) -> Record {
        Record { at: Duration::from_secs(seconds), level: Level::Info, message: message.into() }
    }

    #[test]
    fn oldest_records_make_room() {
        let mut log = RingLog::with_capacity(8);
        for (i, message) in ["four", "more", "last"].into_iter().enumerate() {
            log.push(record(i as u64, message));
        }
        let kept: Vec<_> = log.at_least(Level::Debug).map(|r| r.message.as_str()).collect();
        assert_eq!(kept, ["more", "last"]);
        assert_eq!(log.dropped(), 1);
    }
}
