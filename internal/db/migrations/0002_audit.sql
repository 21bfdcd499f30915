-- The append-only log. A row is written in the transaction of what it records,
-- and gets its place (idx) afterwards, from the one who sequences.
create table audit (
	seq identity,
	tenant_id text not null,
	id text not null,
	at bigint not null,
	action text not null,
	outcome text not null check (outcome in ('done', 'refused', 'failed')),
	actor text not null,
	target text not null,
	session_id text not null,
	touches text not null default '',
	touched_at bigint, -- at, of an event that touches something
	leaf bytes not null,
	leaf_hash bytes not null,
	payload bytes not null,
	idx bigint,
	unique (tenant_id, id)
);

create unique index audit_idx on audit (tenant_id, idx) where idx is not null;
create index audit_waiting on audit (tenant_id, seq) where idx is null;
create index audit_touched on audit (touched_at) where touched_at is not null;
create index audit_session on audit (tenant_id, session_id, seq) where session_id <> '';
create index audit_target on audit (tenant_id, target, seq);
create index audit_actor on audit (tenant_id, actor, seq);
