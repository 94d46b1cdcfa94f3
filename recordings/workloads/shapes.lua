-- Many small hot loops: LuaJIT compiles each, and makes its code pages writable and executable in turn for every trace.
local made, sum = 0, 0
for n = 1, 400 do
  local source = string.format([[
    local t, s = {}, 0
    for i = 1, 400 do t[i] = (i * %d) %% %d end
    for i = 1, 400 do if t[i] > %d then s = s + t[i] else s = s - %d end end
    return s]], n, n + 7, n / 2, n)
  sum = sum + assert(loadstring(source))()
  made = made + 1
end
local parts = {}
for i = 1, 200000 do parts[#parts + 1] = tostring(i * sum % 1000003) end
print(made, sum, #table.concat(parts, ','))
