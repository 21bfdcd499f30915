-- Where else people may sign in, and who they are there.
create table identity_provider (
	tenant_id text not null,
	id text not null,
	name text not null,
	spec text not null, -- JSON
	managed_by text not null,
	created_at bigint not null,
	changed_at bigint not null,
	ended_at bigint,
	epoch bigint not null check (epoch > 0),
	primary key (tenant_id, id)
);

create unique index identity_provider_name on identity_provider (tenant_id, name) where ended_at is null;

create table person_identity (
	tenant_id text not null,
	provider_id text not null,
	subject text not null, -- as the provider names the person, for good
	person_id text not null,
	created_at bigint not null,
	primary key (tenant_id, provider_id, subject),
	foreign key (tenant_id, provider_id) references identity_provider (tenant_id, id),
	foreign key (tenant_id, person_id) references person (tenant_id, id)
);

-- When the person proved who they are, where that was before they came here.
alter table person_token add column authenticated_at bigint;
