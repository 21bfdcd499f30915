-- What people let agents have: kept consents, requests that were pushed, codes,
-- and the refresh tokens that a grant is renewed with.
create table oauth_consent (
	tenant_id text not null,
	id text not null,
	person_id text not null,
	client_id text not null,
	redirect_uri text not null, -- as it is registered
	client_digest text not null, -- of what the client said of itself
	reach text not null, -- scopes by resource, as JSON
	created_at bigint not null,
	ended_at bigint,
	primary key (tenant_id, id),
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

create unique index oauth_consent_live on oauth_consent (tenant_id, person_id, client_id, redirect_uri) where ended_at is null;

create table oauth_pushed (
	tenant_id text not null,
	hash bytes not null,
	client_id text not null,
	request text not null,
	created_at bigint not null,
	expires_at bigint not null,
	opened_at bigint, -- when a browser first came with it
	consumed_at bigint,
	primary key (tenant_id, hash)
);

create index oauth_pushed_due on oauth_pushed (expires_at);

create table oauth_code (
	tenant_id text not null,
	hash bytes not null,
	grant_id text not null,
	client_id text not null,
	redirect_uri text not null,
	challenge text not null, -- of PKCE, S256
	jkt text not null, -- the key that must be shown; '' for none
	created_at bigint not null,
	expires_at bigint not null,
	consumed_at bigint,
	primary key (tenant_id, hash),
	foreign key (tenant_id, grant_id) references oauth_grant (tenant_id, id)
);

create index oauth_code_due on oauth_code (expires_at);

create table refresh_token (
	tenant_id text not null,
	hash bytes not null,
	grant_id text not null, -- the family
	generation bigint not null,
	jkt text not null, -- the key that the client must show with it; '' for none
	created_at bigint not null,
	expires_at bigint not null,
	spent_at bigint,
	spent_jkt text, -- the key that was shown when it was spent
	successor bytes, -- sealed under the spent value, while a lost answer may be asked for again
	primary key (tenant_id, hash),
	foreign key (tenant_id, grant_id) references oauth_grant (tenant_id, id)
);

create unique index refresh_token_grant on refresh_token (tenant_id, grant_id, generation);
create index refresh_token_due on refresh_token (expires_at);
create index refresh_token_successor on refresh_token (spent_at) where successor is not null;

-- How the person at the root proved who they are, as JSON; null where none is.
alter table oauth_grant add column auth text;
create index oauth_grant_subject on oauth_grant (tenant_id, subject) where ended_at is null;
