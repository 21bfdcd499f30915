-- Tokens of upstreams that stay here: an agent has a handle in the place of each,
-- which is good in its session and for the one resource.
create table gateway_token (
	tenant_id text not null,
	id text not null,
	digest bytes not null, -- of the handle
	session_id text not null,
	resource_id text not null, -- with its epoch
	member text not null, -- what the upstream calls it: access_token
	sealed bytes not null,
	created_at bigint not null,
	primary key (tenant_id, id)
);

create unique index gateway_token_handle on gateway_token (tenant_id, digest);
create index gateway_token_session on gateway_token (tenant_id, session_id);

-- OAuth connections to upstreams. The tokens of one are sealed together; whoever
-- renews them has the connection for a while.
create table connection (
	tenant_id text not null,
	id text not null,
	name text not null,
	spec text not null, -- JSON
	state text not null check (state in ('reauthorize', 'healthy', 'misconfigured')),
	reason text not null, -- why it is not healthy; "" if it is
	generation bigint not null check (generation >= 0), -- of the tokens
	sealed bytes, -- the tokens; none before they are there
	scopes text not null, -- that were granted
	account text not null, -- by whom it was authorized
	expires_at bigint, -- of the access token; none if that was not said
	renewable bigint not null, -- whether it can be renewed without a person
	claimed_by text,
	claimed_until bigint,
	fence bigint not null default 0,
	next_try_at bigint,
	failures bigint not null default 0,
	created_at bigint not null,
	changed_at bigint not null,
	renewed_at bigint,
	ended_at bigint,
	epoch bigint not null check (epoch > 0),
	primary key (tenant_id, id)
);

create unique index connection_name on connection (tenant_id, name) where ended_at is null;
create index connection_due on connection (next_try_at) where ended_at is null and next_try_at is not null;

-- Authorizations that are under way in somebody's browser.
create table connection_visit (
	tenant_id text not null,
	digest bytes not null, -- of the state parameter
	connection_id text not null,
	epoch bigint not null, -- of the connection
	subject text not null, -- who began it
	expires_at bigint not null,
	primary key (tenant_id, digest),
	foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);

create index connection_visit_due on connection_visit (expires_at);

-- Tokens that are to be ended at the provider, until it has answered.
create table connection_revocation (
	tenant_id text not null,
	id text not null,
	connection_id text not null,
	sealed bytes not null, -- the token, with where it is to be ended
	created_at bigint not null,
	next_try_at bigint not null,
	tries bigint not null default 0,
	last_error text not null,
	primary key (tenant_id, id)
);

create index connection_revocation_due on connection_revocation (next_try_at);
