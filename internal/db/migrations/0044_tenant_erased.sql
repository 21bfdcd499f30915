-- When an organisation's keys were destroyed, so that nothing of what was sealed
-- for it can be opened again. It stays disabled, and its name stays taken.
alter table tenant add column erased_at bigint;
