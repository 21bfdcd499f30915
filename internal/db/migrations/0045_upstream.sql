-- Other vaults: stores that secrets of ours are read from, or pushed to.
create table secret_store (
	tenant_id text not null,
	id text not null,
	name text not null,
	kind text not null,
	address text not null,
	options text not null, -- JSON map of strings
	authorities text not null,
	login text not null, -- path of the secret that logs in there; "" for none
	owner text not null,
	description text not null,
	created_at bigint not null,
	changed_at bigint not null,
	epoch bigint not null check (epoch > 0),
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index secret_store_name on secret_store (tenant_id, name) where ended_at is null;

-- Where the value of a secret lives, if it is not here: JSON, under the row's MAC.
-- Its versions are copies of versions there.
alter table secret add column link text not null default '';
alter table secret_version add column origin text not null default '';

-- What is known of a secret whose value lives in a store: until when its copy is
-- believed without asking. Whoever asks has the row for a while.
create table secret_link (
	tenant_id text not null,
	secret_id text not null,
	store_id text not null,
	path text not null, -- there
	fresh_until bigint,
	claimed_by text not null default '',
	claimed_until bigint,
	fence bigint not null default 0,
	last_error text not null default '',
	primary key (tenant_id, secret_id)
);

create index secret_link_store on secret_link (tenant_id, store_id);
create index secret_link_stale on secret_link (fresh_until) where fresh_until is not null;

-- Folders of a store of which each secret is linked.
create table secret_link_folder (
	tenant_id text not null,
	prefix text not null, -- here
	store_id text not null,
	path text not null, -- what paths there begin with
	spec text not null, -- JSON: what is said of secrets that are made
	created_by text not null,
	next_at bigint not null, -- when the store is asked for its list again
	last_error text not null default '',
	primary key (tenant_id, prefix)
);

create index secret_link_folder_due on secret_link_folder (next_at);

-- Secrets of ours that are pushed to a store. The versions of the secret are what
-- is to be pushed; the cursor is the last one that is known to be there.
create table secret_sync (
	tenant_id text not null,
	id text not null,
	secret_id text not null,
	store_id text not null,
	path text not null, -- there
	cursor bigint not null default 0,
	there text not null, -- what stands there as far as it is ours, or was accepted: a version, "absent"
	sent bytes, -- numbers and digests of versions that may be there already
	drift text not null default '', -- what stands there that is not ours
	drift_at bigint,
	next_at bigint not null, -- when it is looked at again
	tries bigint not null default 0,
	last_error text not null default '',
	pushed_at bigint,
	claimed_by text not null default '',
	claimed_until bigint,
	fence bigint not null default 0,
	created_by text not null,
	created_at bigint not null,
	primary key (tenant_id, id)
);

create unique index secret_sync_place on secret_sync (tenant_id, store_id, path);
create index secret_sync_secret on secret_sync (tenant_id, secret_id);
create index secret_sync_due on secret_sync (next_at);

-- A version may also be used by keeping it in another vault.
create table secret_use_next (
	tenant_id text not null,
	secret_id text not null,
	version bigint not null,
	subject text not null,
	session_id text not null,
	via text not null check (via in ('gateway', 'plaintext', 'sync')),
	first_at bigint not null,
	last_at bigint not null,
	count bigint not null check (count > 0),
	primary key (tenant_id, secret_id, version, subject, session_id, via)
);

insert into secret_use_next (tenant_id, secret_id, version, subject, session_id, via, first_at, last_at, count)
	select tenant_id, secret_id, version, subject, session_id, via, first_at, last_at, count from secret_use;
drop table secret_use;
alter table secret_use_next rename to secret_use;

create index secret_use_subject on secret_use (tenant_id, subject, last_at);
create index secret_use_session on secret_use (tenant_id, session_id) where session_id <> '';
