-- Requests for wrk: each of the dialects in turn, whole and streamed, some prompts again and again.
-- Reports every status that came, as JSON.

local threads = {}
statuses = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local bodies = {
    { "/v1/completions", '{"prompt": "%s", "max_tokens": 16, "temperature": 0, "stream": %s}' },
    { "/completion", '{"prompt": "%s", "n_predict": 16, "temperature": 0, "stream": %s}' },
    { "/infill", '{"input_prefix": "%s", "input_suffix": "\\n    return a", "n_predict": 16, "stream": %s}' },
    { "/api/generate", '{"model": "any", "prompt": "%s", "options": {"num_predict": 16}, "stream": %s}' },
  }
  requests = {}
  for number = 1, 12 do
    for _, body in ipairs(bodies) do
      for _, stream in ipairs({ "true", "false" }) do
        local prompt = string.rep("def f" .. number .. "(a, b):\\n    return a + b\\n\\n", number)
        local headers = { ["content-type"] = "application/json" }
        table.insert(requests, wrk.format("POST", body[1], headers, string.format(body[2], prompt, stream)))
      end
    end
  end
  next_one = 0
end

function request()
  next_one = next_one % #requests + 1
  return requests[next_one]
end

function response(status, headers, body)
  statuses[status] = (statuses[status] or 0) + 1
end

function done(summary, latency, requests)
  local seen = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do
      seen[status] = (seen[status] or 0) + count
    end
  end
  local parts = {}
  for status, count in pairs(seen) do
    table.insert(parts, string.format('"%d": %d', status, count))
  end
  local errors = summary.errors
  io.write(string.format(
    'JSON {"statuses": {%s}, "connect": %d, "read": %d, "write": %d, "timeout": %d, "p50_ms": %.1f, "p99_ms": %.1f, "per_s": %.1f}\n',
    table.concat(parts, ", "), errors.connect, errors.read, errors.write, errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, summary.requests / summary.duration * 1e6))
end
