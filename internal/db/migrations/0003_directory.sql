-- People who manage Estover or answer for agents, and the tokens they hold.
create table person (
	tenant_id text not null,
	id text not null,
	name text not null, -- for good: a name in the record means one person
	email text not null,
	roles text not null,
	managed_by text not null,
	created_at bigint not null,
	disabled_at bigint,
	disabled_reason text not null,
	epoch bigint not null,
	primary key (tenant_id, id),
	unique (tenant_id, name)
);

create unique index person_email on person (tenant_id, email) where email <> '';

-- What is exchanged, once, for a person's first token.
create table enrolment (
	tenant_id text not null,
	id text not null,
	person_id text not null,
	hash bytes not null,
	created_at bigint not null,
	created_by text not null,
	expires_at bigint not null,
	consumed_at bigint,
	primary key (tenant_id, id),
	unique (tenant_id, hash),
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

create index enrolment_person on enrolment (tenant_id, person_id) where consumed_at is null;

create table person_token (
	tenant_id text not null,
	id text not null,
	person_id text not null,
	hash bytes not null,
	label text not null,
	created_at bigint not null,
	expires_at bigint not null,
	ended_at bigint,
	primary key (tenant_id, id),
	unique (tenant_id, hash),
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

create index person_token_person on person_token (tenant_id, person_id, created_at);
