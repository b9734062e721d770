-- For wrk: post BODY.body with the headers of BODY.headers; one JSON line of figures at the end.
local base = os.getenv("BODY")
local file = assert(io.open(base .. ".body", "rb"))
wrk.body = file:read("*a")
file:close()
for line in io.lines(base .. ".headers") do
  local name, value = line:match("^(.-):%s*(.*)$")
  if name then wrk.headers[name] = value end
end
wrk.method = "POST"
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'FIGURES {"count":%d,"seconds":%f,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.status + e.connect + e.read + e.write + e.timeout))
end
