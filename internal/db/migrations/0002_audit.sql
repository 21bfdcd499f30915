-- The append-only log. A row is written in the transaction of what it records,
-- and gets its place (idx) afterwards, from the one who sequences. What that
-- one reads and writes stands before the long columns.
--
-- Events that one commit writes together may stand in one row, a pack: n of
-- them, in consecutive places from idx on. Its id and last_id are the first and
-- the last of their ids, at is the earliest of their times, and heads is what
-- the columns of a single event say, for each.
create table audit (
	seq identity,
	tenant_id text not null,
	idx bigint,
	n bigint not null default 1 check (n between 1 and 256),
	leaf_hash bytes not null check (length(leaf_hash) = 32 * n),
	id text not null,
	at bigint not null,
	action text not null,
	outcome text not null check (outcome in ('done', 'refused', 'failed')),
	actor text not null,
	target text not null,
	session_id text not null,
	touches text not null default '',
	touched_at bigint, -- at, of an event that touches something
	last_id text not null default '',
	heads bytes,
	leaf bytes not null check (n > 1 or length(leaf) < 65536),
	payload bytes not null, -- sealed; empty once it is erased
	check ((n > 1) = (heads is not null))
);

create unique index audit_id on audit (tenant_id, id) where n = 1;

create unique index audit_idx on audit (tenant_id, idx) where idx is not null;
create index audit_waiting on audit (tenant_id, seq) where idx is null;
create index audit_pack on audit (tenant_id, last_id) where n > 1;
create index audit_touched on audit (touched_at) where touched_at is not null;
-- The events of one session, target or actor: for a run of consecutive places,
-- which of them, as offsets from the first of the run, "0 3 17". Runs are long,
-- so that what is busy costs a row for each of its runs and not for each event.
create table audit_post (
	tenant_id text not null,
	ref text not null,
	first bigint not null,
	offsets text not null,
	primary key (tenant_id, ref, first)
);

-- The Merkle tree over the leaves that have a place, one a tenant, and the
-- checkpoint that is published, of this tree or of an earlier one.
create table audit_tree (
	tenant_id text primary key,
	size bigint not null check (size > 0),
	posted bigint not null default 0, -- the places before this one are in audit_post
	root bytes not null check (length(root) = 32),
	signed_size bigint not null default 0,
	signed_root bytes,
	checkpoint text not null default '',
	check (signed_size <= size)
);

-- Its tiles (C2SP tlog-tiles): n-th of its level, at most 256 hashes. Only the
-- last one of a level is ever written again.
create table audit_tile (
	tenant_id text not null,
	level bigint not null,
	n bigint not null,
	hashes bytes not null check (length(hashes) between 32 and 8192),
	primary key (tenant_id, level, n)
);

-- How far each follower of the log has come.
create table audit_cursor (
	tenant_id text not null,
	name text not null,
	next bigint not null,
	primary key (tenant_id, name)
);
