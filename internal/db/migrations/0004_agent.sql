-- Agents, what holds them, and what they prove themselves with.
create table agent (
	tenant_id text not null,
	id text not null,
	name text not null, -- for good: a name in the record means one agent
	blueprint text not null,
	sponsor text not null, -- a person
	team text not null,
	environment text not null,
	purposes text not null,
	clearance text not null check (clearance in ('public', 'internal', 'confidential', 'restricted')),
	tier text not null check (tier in ('low', 'medium', 'high')),
	segments text not null,
	expires_at bigint,
	managed_by text not null,
	created_at bigint not null,
	ended_at bigint, -- when it was retired
	epoch bigint not null,
	primary key (tenant_id, id),
	unique (tenant_id, name)
);

create index agent_sponsor on agent (tenant_id, sponsor);

-- Each hold stands by itself until it is lifted.
create table agent_hold (
	tenant_id text not null,
	id text not null,
	agent_id text not null,
	kind text not null check (kind in ('pending', 'suspended', 'quarantined', 'retired')),
	reason text not null,
	raised_by text not null,
	raised_at bigint not null,
	lifted_by text,
	lifted_at bigint,
	primary key (tenant_id, id),
	foreign key (tenant_id, agent_id) references agent (tenant_id, id),
	check ((lifted_by is null) = (lifted_at is null)),
	check (kind <> 'retired' or lifted_at is null)
);

create index agent_hold_live on agent_hold (tenant_id, agent_id) where lifted_at is null;
create unique index agent_hold_retired on agent_hold (tenant_id, agent_id) where kind = 'retired';

create table agent_credential (
	tenant_id text not null,
	id text not null,
	agent_id text not null,
	kind text not null check (kind in ('secret', 'jwks')),
	label text not null,
	hash bytes, -- of a secret: HMAC-SHA-256 under the pepper
	jwks text, -- of public keys
	created_at bigint not null,
	created_by text not null,
	expires_at bigint,
	ended_at bigint,
	last_used_at bigint,
	epoch bigint not null,
	primary key (tenant_id, id),
	foreign key (tenant_id, agent_id) references agent (tenant_id, id),
	check ((kind = 'secret') = (hash is not null)),
	check ((kind = 'jwks') = (jwks is not null))
);

create index agent_credential_live on agent_credential (tenant_id, agent_id) where ended_at is null;
