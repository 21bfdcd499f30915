-- The tokens of the Vault-compatible door. A ticket is found by the MAC of its
-- value; id is its accessor. It is good while neither it nor any that it came of
-- has ended: one whose parent is gone has ended too.
create table ticket (
	tenant_id text not null,
	hash bytes not null,
	id text not null,
	parent_id text, -- null for an orphan
	depth bigint not null check (depth between 0 and 32),
	subject text not null,
	session_id text, -- that it ends with
	grant_id text, -- the grant of the token service, or the token of a person, that it rests on
	rests bigint not null, -- the epoch of that grant, or of the session
	mount_id text not null, -- the way by which it was got
	role text not null,
	path text not null, -- the request that made it
	display_name text not null,
	kind text not null check (kind in ('service', 'batch')),
	policies text not null, -- JSON
	meta text not null, -- JSON
	created_at bigint not null,
	renewed_at bigint,
	expires_at bigint not null,
	ended_at bigint,
	renewable boolean not null,
	ttl bigint not null, -- seconds, as are these
	explicit_max_ttl bigint not null,
	most_ttl bigint not null, -- beyond which nobody renews it
	period bigint not null,
	uses bigint not null, -- that it was made for; 0 for as many as one likes
	uses_left bigint check (uses_left >= 0),
	cidrs text not null, -- JSON
	certificate text not null, -- x5t#S256; '' for none
	epoch bigint not null default 1,
	primary key (tenant_id, hash),
	unique (tenant_id, id)
);

create index ticket_session on ticket (tenant_id, session_id) where ended_at is null and session_id is not null;
create index ticket_parent on ticket (tenant_id, parent_id) where ended_at is null and parent_id is not null;
create index ticket_mount on ticket (tenant_id, mount_id) where ended_at is null;
create index ticket_expires on ticket (expires_at);
create index ticket_ended on ticket (ended_at) where ended_at is not null;

-- What a ticket may be got by, and what it then is: a role of a mount. One that
-- somebody logs in by leads to an agent.
create table ticket_role (
	tenant_id text not null,
	id text not null,
	mount_id text not null,
	name text not null,
	kind text not null check (kind in ('token', 'approle', 'jwt', 'cert')),
	role_id text, -- of an AppRole
	agent_id text,
	made boolean not null, -- the agent was made with the role
	spec text not null, -- JSON
	created_at bigint not null,
	changed_at bigint not null,
	epoch bigint not null,
	primary key (tenant_id, id),
	unique (tenant_id, mount_id, name),
	unique (tenant_id, mount_id, role_id)
);

create index ticket_role_agent on ticket_role (tenant_id, agent_id) where agent_id is not null;

-- What a mount itself is set to, and lists of certificates that count no more.
create table ticket_setting (
	tenant_id text not null,
	mount_id text not null,
	name text not null, -- 'config', or crl/NAME
	spec text not null, -- JSON
	changed_at bigint not null,
	primary key (tenant_id, mount_id, name)
);

-- The secrets of AppRoles. id is the accessor.
create table ticket_secret (
	tenant_id text not null,
	role_ref text not null,
	hash bytes not null,
	id text not null,
	meta text not null, -- JSON
	cidrs text not null, -- JSON: from where one logs in with it
	token_cidrs text not null, -- JSON: from where the ticket is good
	ttl bigint not null, -- seconds; 0 for no end
	uses bigint not null, -- 0 for as many as one likes
	uses_left bigint check (uses_left >= 0),
	created_at bigint not null,
	updated_at bigint not null,
	expires_at bigint,
	primary key (tenant_id, role_ref, hash),
	unique (tenant_id, id),
	foreign key (tenant_id, role_ref) references ticket_role (tenant_id, id)
);

create index ticket_secret_expires on ticket_secret (expires_at) where expires_at is not null;

-- An answer that waits for whoever has the token of it, once.
create table ticket_wrap (
	tenant_id text not null,
	hash bytes not null,
	id text not null,
	sealed bytes not null,
	path text not null,
	wrapped text not null, -- the accessor of what is in it; '' for none
	ttl bigint not null, -- seconds
	made_by text not null,
	session_id text,
	created_at bigint not null,
	expires_at bigint not null,
	primary key (tenant_id, hash),
	unique (tenant_id, id)
);

create index ticket_wrap_session on ticket_wrap (tenant_id, session_id) where session_id is not null;
create index ticket_wrap_expires on ticket_wrap (expires_at);

-- What a ticket keeps for itself.
create table cubbyhole (
	tenant_id text not null,
	ticket_id text not null,
	path text not null,
	id text not null,
	sealed bytes not null,
	created_at bigint not null,
	primary key (tenant_id, ticket_id, path),
	unique (tenant_id, id),
	foreign key (tenant_id, ticket_id) references ticket (tenant_id, id)
);

-- What a database mount of the door calls things: a configuration is a target and
-- the secret of its admin, a role is a role of leases. spec is as it was written.
create table database_config (
	tenant_id text not null,
	mount_id text not null,
	name text not null,
	target text not null,
	admin text not null, -- path of a secret
	spec text not null, -- JSON
	changed_at bigint not null,
	epoch bigint not null,
	primary key (tenant_id, mount_id, name),
	unique (tenant_id, target)
);

-- A static role is a secret that is rotated, at the path that stands in place of
-- the role of leases.
create table database_role (
	tenant_id text not null,
	mount_id text not null,
	name text not null,
	kind text not null check (kind in ('dynamic', 'static')),
	lease_role text not null,
	spec text not null, -- JSON
	changed_at bigint not null,
	epoch bigint not null,
	primary key (tenant_id, mount_id, name),
	unique (tenant_id, lease_role)
);

-- Something ends with the ticket, so that its end by time is looked for.
alter table ticket add column holds boolean not null default false;

create index ticket_holds on ticket (expires_at) where holds and ended_at is null;
