-- What wrk asks for, by the first argument behind `--`; and its figures in one line of JSON.
local modes = {}

-- One target, with one more header field if there is one.
function modes.hot(target, name, value)
  local request = wrk.format("GET", target, name and { [name] = value })
  return function() return request end
end

-- What was never asked for before.
function modes.miss(run)
  local n = 0
  return function()
    n = n + 1
    return wrk.format("GET", "/miss/" .. run .. "-" .. n)
  end
end

-- 64 KiB at random places of 32 MiB.
function modes.range()
  local requests, at = {}, 0
  for i = 1, 1024 do
    local first = math.random(0, 32 * 1024 * 1024 - 65536)
    local range = string.format("bytes=%d-%d", first, first + 65535)
    requests[i] = wrk.format("GET", "/o/32m", { Range = range })
  end
  return function()
    at = at % #requests + 1
    return requests[at]
  end
end

-- 20,000 objects, the n-th most popular of them n^-0.9 as often as the first.
function modes.small()
  local requests, order, sums, sum, at = {}, {}, {}, 0, 0
  for n = 1, 20000 do
    -- A stride apart, so that the popular are not neighbours.
    requests[n] = wrk.format("GET", "/s/" .. (n * 7919) % 20000)
    sum = sum + 1 / n ^ 0.9
    sums[n] = sum
  end
  for i = 1, 131072 do
    local x, low, high = math.random() * sum, 1, 20000
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sums[middle] < x then low = middle + 1 else high = middle end
    end
    order[i] = requests[low]
  end
  return function()
    at = at % #order + 1
    return order[at]
  end
end

-- 8,192 objects of 16 to 48 KiB, each as often as any other.
function modes.disk()
  local requests = {}
  for n = 0, 8191 do requests[n] = wrk.format("GET", "/d/" .. n) end
  return function() return requests[math.random(0, 8191)] end
end

local ask

function init(args)
  math.randomseed(1) -- everybody gets the same
  ask = modes[args[1]](unpack(args, 2))
end

function request()
  return ask()
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('JSON{"requests":%d,"seconds":%f,"errors":%d}\n', summary.requests,
    summary.duration / 1e6, e.status + e.connect + e.read + e.write + e.timeout))
end
