"""What the server does in one step, so that nobody comes between.

All metadata is one hash::

snapshot:FM@0007           "GENERATION LAYOUT", of a snapshot that has rows
rows:FM@0007               how many, at most
reserved:FM@0007:TOKEN     how many more there may be, of a put that has not ended; a killed one's stay, as its rows do
pending:FM@0007            as snapshot:, while its first rows are being written
pointer:FM/latest          FM@0007
mover:FM/latest            token of the last move, by which a mover that heard no answer knows its own

All scripts may be run again when no answer came.
"""

REGISTER = """
-- ARGV: snapshot, layout, token of a put, its rows. "GENERATION LAYOUT" under which they are to be written.
local function layout_of(text) return string.match(text, '^%x+ (.*)$') end
local written = redis.call('HGET', KEYS[1], 'snapshot:' .. ARGV[1])
if not written then
  written = redis.call('HGET', KEYS[1], 'pending:' .. ARGV[1])
  if not written or layout_of(written) ~= ARGV[2] then
    -- Of token and time: a command that arrives twice, or late, does not call a dead generation back.
    local generation = string.sub(redis.sha1hex(ARGV[3] .. table.concat(redis.call('TIME'), '.')), 1, 16)
    written = generation .. ' ' .. ARGV[2]
    redis.call('HSET', KEYS[1], 'pending:' .. ARGV[1], written)
  end
end
if layout_of(written) == ARGV[2] then
  redis.call('HSET', KEYS[1], 'reserved:' .. ARGV[1] .. ':' .. ARGV[3], ARGV[4])
end
return written
"""

SETTLE = """
-- KEYS: metadata, marks. ARGV: snapshot, "GENERATION LAYOUT" of a put, its token, how many of its rows are new; a
-- mark, seconds that it stays. 0 if they are of the dead now.
local reserved = redis.call('HDEL', KEYS[1], 'reserved:' .. ARGV[1] .. ':' .. ARGV[3])
local live = redis.call('HGET', KEYS[1], 'snapshot:' .. ARGV[1])
if not live and redis.call('HGET', KEYS[1], 'pending:' .. ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], 'pending:' .. ARGV[1])
  redis.call('HSET', KEYS[1], 'snapshot:' .. ARGV[1], ARGV[2])
elseif live ~= ARGV[2] then
  return 0
end
if reserved == 1 then redis.call('HINCRBY', KEYS[1], 'rows:' .. ARGV[1], ARGV[4]) end
redis.call('SADD', KEYS[2], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return 1
"""

DROP = """
-- ARGV: snapshot, its "GENERATION LAYOUT". 0 if a pointer names it; 1 if it is gone.
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
  if string.sub(all[place], 1, 8) == 'pointer:' and all[place + 1] == ARGV[1] then return 0 end
end
if redis.call('HGET', KEYS[1], 'snapshot:' .. ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], 'snapshot:' .. ARGV[1], 'rows:' .. ARGV[1])
  local reserved = 'reserved:' .. ARGV[1] .. ':'
  for place = 1, #all, 2 do
    if string.sub(all[place], 1, #reserved) == reserved then redis.call('HDEL', KEYS[1], all[place]) end
  end
end
return 1
"""

MOVE = """
-- ARGV: pointer, expected, to, token; '' for none. {what came of it, where the pointer points if it is elsewhere}
if redis.call('HGET', KEYS[1], 'mover:' .. ARGV[1]) == ARGV[4] then return {'moved', ''} end
if ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[1], 'snapshot:' .. ARGV[3]) == 0 then return {'no rows', ''} end
local actual = redis.call('HGET', KEYS[1], 'pointer:' .. ARGV[1]) or ''
if actual ~= ARGV[2] then return {'elsewhere', actual} end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], 'pointer:' .. ARGV[1])
else
  redis.call('HSET', KEYS[1], 'pointer:' .. ARGV[1], ARGV[3])
end
redis.call('HSET', KEYS[1], 'mover:' .. ARGV[1], ARGV[4])
return {'moved', ''}
"""

ABANDON = """
-- Give up what is pending, and what puts to snapshots without rows have reserved; writers notice when they settle.
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local kind, snapshot = string.match(field, '^(%l+):([^:]+)')
  if kind == 'pending' or
    (kind == 'reserved' and redis.call('HEXISTS', KEYS[1], 'snapshot:' .. snapshot) == 0) then
    redis.call('HDEL', KEYS[1], field)
  end
end
"""

MERGE = """
-- KEYS: a row's. ARGV: a record, how many are kept. 1 if there is a record more than before.
local size, old = #ARGV[1], redis.call('GET', KEYS[1]) or ''
if #old % size ~= 0 then old = '' end  -- damaged: what is put now is all that can be trusted
local function time(text, at)
  local low, high = struct.unpack('<I4i4', text, at)  -- in halves: a number of Lua has 53 bits
  return high, low
end
local high, low = time(ARGV[1], 1)
local records, placed, replaced = {}, false, false
for at = 1, #old, size do
  local its_high, its_low = time(old, at)
  if its_high == high and its_low == low then
    replaced = true
  else
    if not placed and (its_high < high or (its_high == high and its_low < low)) then
      records[#records + 1], placed = ARGV[1], true
    end
    records[#records + 1] = string.sub(old, at, at + size - 1)
  end
end
if not placed then records[#records + 1] = ARGV[1] end
local full = #records > tonumber(ARGV[2])
if full then records[#records] = nil end
redis.call('SET', KEYS[1], table.concat(records))
return (replaced or full) and 0 or 1
"""

UNITE = """
-- KEYS: marks. ARGV: seconds that they stay, a mark that is to stand for others, these. 1 if all of them were there.
local there = redis.call('SISMEMBER', KEYS[1], ARGV[2])
if there == 0 then
  there = 1
  for place = 3, #ARGV do
    if redis.call('SREM', KEYS[1], ARGV[place]) == 0 then there = 0 end
  end
  if there == 1 then redis.call('SADD', KEYS[1], ARGV[2]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return there
"""
