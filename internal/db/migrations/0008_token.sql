-- The tree of grants. What ends a grant ends all that hang below it.
create table oauth_grant (
	tenant_id text not null,
	id text not null,
	kind text not null, -- the grant type that made it
	parent_id text,
	root_id text not null,
	session_id text not null,
	client_id text not null,
	subject text not null,
	actors text not null, -- the chain of actors, the nearest first
	scopes text, -- null: whatever the client may have when it asks
	resources text, -- null: likewise
	cnf text not null, -- the key that its tokens are bound to, as JSON
	epoch bigint not null check (epoch > 0),
	created_at bigint not null,
	expires_at bigint not null,
	ended_at bigint,
	end_cause text,
	primary key (tenant_id, id),
	foreign key (tenant_id, parent_id) references oauth_grant (tenant_id, id),
	check ((parent_id is null) = (root_id = id)),
	check ((ended_at is null) = (end_cause is null))
);

-- One grant serves all tokens that a client gets by its own credentials in a
-- session.
create unique index oauth_grant_own on oauth_grant (tenant_id, session_id, client_id)
	where kind = 'client_credentials' and ended_at is null;
create index oauth_grant_session on oauth_grant (tenant_id, session_id) where ended_at is null;
create index oauth_grant_client on oauth_grant (tenant_id, client_id) where ended_at is null;
create index oauth_grant_parent on oauth_grant (tenant_id, parent_id) where parent_id is not null;

-- Access tokens that were revoked one by one, until they expire.
create table denied_token (
	tenant_id text not null,
	grant_id text not null,
	jti text not null,
	expires_at bigint not null,
	primary key (tenant_id, grant_id, jti),
	foreign key (tenant_id, grant_id) references oauth_grant (tenant_id, id)
);

create index denied_token_due on denied_token (expires_at);

-- What may be presented once: SHA-256 of the presenter and the name that it
-- gave, until what carried the name expires.
create table used_jti (
	tenant_id text not null,
	hash bytes not null,
	expires_at bigint not null,
	primary key (tenant_id, hash)
) clustered;

create index used_jti_due on used_jti (expires_at);
