// Parse, group and print again a few thousand records, as a small web service does between two garbage collections.
'use strict'
const rows = []
for (let i = 0; i < 60000; i++) {
  rows.push(JSON.stringify({ id: i, name: `customer ${i % 977}`, tags: [i % 7, i % 11], total: (i * 37) % 1009 }))
}
const text = '[' + rows.join(',') + ']'
let printed = 0
for (let round = 0; round < 4; round++) {
  const groups = new Map()
  for (const row of JSON.parse(text)) {
    const group = groups.get(row.name) ?? { name: row.name, rows: [], total: 0 }
    group.rows.push(row)
    group.total += row.total
    groups.set(row.name, group)
  }
  printed += JSON.stringify([...groups.values()].sort((a, b) => b.total - a.total)).length
  printed += Buffer.alloc(8 << 20, round).length
}
console.log(printed)
