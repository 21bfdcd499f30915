-- The systems in which credentials are made.
create table secret_target (
	tenant_id text not null,
	id text not null,
	name text not null,
	kind text not null,
	address text not null,
	options text not null, -- JSON object
	authorities text not null, -- PEM
	admin text not null, -- path of a secret; '' if there is none
	owner text not null,
	description text not null,
	batches bigint not null check (batches between 1 and 64), -- at once
	created_at bigint not null,
	created_by text not null,
	updated_at bigint not null,
	epoch bigint not null, -- raised by every change
	reach bigint not null, -- the epoch in which address, options or admin last changed
	checked_at bigint, -- when the whole round last went well
	checked_reach bigint not null default 0, -- as it was reached then
	disabled_at bigint, -- nothing is issued there
	disabled_for text not null default '',
	suspect_at bigint, -- nothing is issued there until what is there has been compared with what is here
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index secret_target_name on secret_target (tenant_id, name) where ended_at is null;

-- What leases are made from.
create table lease_role (
	tenant_id text not null,
	name text not null,
	id text not null,
	target_id text not null,
	template text not null, -- JSON object of lists
	resource_id text not null,
	action text not null,
	ttl_s bigint not null check (ttl_s > 0),
	max_ttl_s bigint not null check (max_ttl_s >= ttl_s),
	delivery text not null check (delivery in ('handle', 'plaintext')),
	bind text not null check (bind in ('session', 'token')),
	shared boolean not null,
	per_minute bigint not null check (per_minute > 0),
	description text not null,
	created_at bigint not null,
	created_by text not null,
	updated_at bigint not null,
	epoch bigint not null,
	checked_at bigint, -- null until the whole round has gone well as the role stands
	checked_reach bigint not null default 0, -- of the target
	check_error text not null default '',
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index lease_role_name on lease_role (tenant_id, name) where ended_at is null;
create index lease_role_target on lease_role (tenant_id, target_id) where ended_at is null;

-- Credentials that were handed out, or may have been. The row is there before
-- the credential is, and has not ended before that is gone.
create table lease (
	tenant_id text not null,
	id text not null,
	role text not null, -- its name; '' for a trial of a target
	role_id text not null,
	target_id text not null,
	name text not null, -- of the user
	template text not null, -- JSON
	resource_id text not null,
	delivery text not null,
	state text not null check (state in ('creating', 'live', 'revoking', 'ended')),
	trial boolean not null, -- made to see whether it can be
	session_id text not null, -- '' outside of one
	agent_id text not null, -- '' for a person's
	holder text not null, -- who acts
	token_id text not null, -- that it ends with; '' if with none
	share text, -- by which the same is found again
	created_at bigint not null,
	expires_at bigint not null,
	expires_by text not null, -- what says so: ttl, session, grant, token
	max_at bigint not null, -- the latest that it can be extended to
	create_by bigint not null,
	create_done bigint, -- when the creator was told what had become of it
	cause text not null default '', -- why it ends
	priority bigint not null default 3 check (priority between 0 and 3),
	due_at bigint, -- since when it is to be gone
	next_try_at bigint,
	attempts bigint not null default 0,
	alone boolean not null default false, -- it failed among others, and is tried by itself
	claimed_by text,
	claimed_until bigint,
	fence bigint not null default 0,
	last_error text not null default '',
	alarmed_at bigint,
	declared_by text, -- who says that the target is no more
	declared_for text not null default '',
	ended_at bigint,
	sealed bytes, -- what it hands out, by handle and while it is live
	primary key (tenant_id, id),
	check ((state = 'ended') = (ended_at is not null)),
	check ((state = 'revoking') = (next_try_at is not null)),
	check (state = 'live' or sealed is null)
);

create unique index lease_name on lease (tenant_id, name);
create unique index lease_share on lease (tenant_id, share) where share is not null;
create index lease_late on lease (create_by) where state = 'creating';
create index lease_expires on lease (expires_at) where state = 'live';
create index lease_due on lease (tenant_id, target_id, priority, next_try_at) where state = 'revoking';
create index lease_overdue on lease (tenant_id, target_id, due_at) where state = 'revoking';
create index lease_unalarmed on lease (due_at) where state = 'revoking' and alarmed_at is null;
create index lease_contained on lease (tenant_id, agent_id) where state = 'revoking' and priority = 0;
create index lease_session on lease (tenant_id, session_id) where ended_at is null;
create index lease_agent on lease (tenant_id, agent_id) where ended_at is null;
create index lease_token on lease (tenant_id, token_id) where ended_at is null and token_id <> '';
create index lease_target on lease (tenant_id, target_id) where ended_at is null;
create index lease_resource on lease (tenant_id, resource_id) where ended_at is null;
create index lease_list on lease (tenant_id, created_at, id);
create index lease_role_rate on lease (tenant_id, role_id, created_at);

-- Users at a target that bear our mark and that no lease knows.
create table lease_stray (
	tenant_id text not null,
	target_id text not null,
	name text not null,
	found_at bigint not null,
	locked_at bigint,
	drop_at bigint not null,
	last_error text not null default '',
	primary key (tenant_id, target_id, name)
);

create index lease_stray_due on lease_stray (drop_at);
