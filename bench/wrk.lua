-- What wrk measured, as JSON on its standard error: its own words round the figures.
function done(summary, latency, requests)
   local errors = summary.errors
   io.stderr:write(string.format(
      '{"requests": %d, "us": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
      summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
