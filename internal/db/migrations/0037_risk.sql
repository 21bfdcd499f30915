-- How risky an agent is held to be at the moment, and who said so last, and why.
alter table agent add column risk_band text not null default 'low' check (risk_band in ('low', 'raised', 'high', 'critical'));
alter table agent add column risk_reason text not null default '';
alter table agent add column risk_by text not null default '';
alter table agent add column risk_at bigint;
