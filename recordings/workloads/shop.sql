-- A small shop: fill it, index it, ask it, throw a third away, pack it.
pragma mmap_size = 268435456;
pragma cache_size = -16000;
create table orders(id integer primary key, customer integer, day integer, total integer, note text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000)
insert into orders select i, i * 7919 % 5003, i % 365, i * 31 % 997, hex(i * 2654435761 % 4294967296) || ' ' || i from n;
create index by_customer on orders(customer, day);
select count(*), sum(total) from (select customer, sum(total) total from orders group by customer order by 2 desc);
select a.day, count(*) from orders a join orders b on b.customer = a.customer and b.day = a.day where a.day < 40
group by a.day order by 2 desc limit 3;
delete from orders where day % 3 = 0;
vacuum;
select count(*) from orders where note like '%7%';
