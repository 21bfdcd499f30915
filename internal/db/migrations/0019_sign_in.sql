-- People in browsers: the passkeys that they sign in with, codes for when all
-- passkeys are lost, and the browsers in which they are signed in.
create table passkey (
	tenant_id text not null,
	id text not null,
	person_id text not null,
	credential_id bytes not null, -- as the authenticator names it
	credential text not null, -- public key, counter and flags, as JSON
	label text not null,
	created_at bigint not null,
	used_at bigint,
	ended_at bigint,
	primary key (tenant_id, id),
	unique (tenant_id, credential_id),
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

create index passkey_person on passkey (tenant_id, person_id) where ended_at is null;

create table recovery_code (
	tenant_id text not null,
	hash bytes not null,
	person_id text not null,
	created_at bigint not null,
	used_at bigint, -- also when others took its place
	primary key (tenant_id, hash),
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

create index recovery_code_person on recovery_code (tenant_id, person_id) where used_at is null;

-- Challenges that a passkey has answered, until they would have lapsed.
create table answered_challenge (
	tenant_id text not null,
	hash bytes not null,
	expires_at bigint not null,
	primary key (tenant_id, hash)
);

create index answered_challenge_due on answered_challenge (expires_at);

-- A browser in which a person is signed in holds a token of another kind, which
-- the API does not take.
alter table person_token add column kind text not null default 'bearer' check (kind in ('bearer', 'browser'));
alter table person_token add column methods text; -- how the person proved who it is (RFC 8176)
alter table person_token add column seen_at bigint; -- when the browser last asked for something
