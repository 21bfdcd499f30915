-- Whether clients may register themselves; no row is no.
create table client_registration (
	tenant_id text not null primary key,
	opened_at bigint not null,
	opened_by text not null
);

-- With what they do it, and what becomes of them at most.
create table initial_token (
	tenant_id text not null,
	id text not null,
	hash bytes not null,
	label text not null,
	bounds text not null, -- JSON
	uses bigint not null check (uses > 0),
	used bigint not null check (used >= 0 and used <= uses),
	created_at bigint not null,
	created_by text not null,
	expires_at bigint not null,
	ended_at bigint,
	primary key (tenant_id, id),
	unique (tenant_id, hash)
);

-- What an agent said of itself that registered itself, and the hash of the token
-- by which it may say something else.
alter table agent add column registration text; -- JSON
alter table agent add column registration_hash bytes;

-- What a person let a client have, by resource; null where nobody was asked.
alter table oauth_grant add column reach text; -- JSON
