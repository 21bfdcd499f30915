-- What is held as a whole. Holds of single agents are in agent_hold.
create table hold (
	tenant_id text not null,
	id text not null,
	scope text not null check (scope in ('blueprint', 'person', 'resource', 'tenant', 'everything')),
	target text not null check ((target = '') = (scope = 'everything')),
	reason text not null,
	raised_by text not null,
	raised_at bigint not null,
	lifted_by text,
	lifted_at bigint,
	primary key (tenant_id, id),
	check ((lifted_by is null) = (lifted_at is null)),
	check (scope <> 'everything' or tenant_id = 'default')
);

create index hold_standing on hold (tenant_id, scope, target) where lifted_at is null;

-- What was contained, if it was not one agent, and the hold that it raised.
alter table containment add column scope text not null default 'agent';
alter table containment add column hold_id text not null default '';
alter table containment rename column agent_id to target;
alter table containment add column ended_at bigint; -- when it was given up: its hold was lifted before

-- Drills: a decoy was contained, and this long it took.
create table drill (
	tenant_id text not null,
	id text not null,
	run_by text not null,
	at bigint not null,
	containment_id text not null, -- '' if it did not come to that
	refused_us bigint not null, -- until a new call was refused
	stream_us bigint not null, -- until the open stream was dead
	zero_us bigint not null, -- until nothing could act, as the certificate has it
	bound_us bigint not null, -- what it may take
	error text not null, -- '' if it was carried out
	primary key (tenant_id, id)
);

-- Sets of sealed codes by which an administrator comes in when none else can.
-- A set is used up by one opening.
create table emergency_set (
	tenant_id text not null,
	id text not null,
	shares bigint not null,
	quorum bigint not null check (quorum > 0 and quorum <= shares),
	created_at bigint not null,
	created_by text not null,
	expires_at bigint not null,
	opened_at bigint,
	person_id text, -- who came in
	ended_at bigint, -- when another set took its place, or it was opened
	primary key (tenant_id, id),
	check ((opened_at is null) = (person_id is null))
);

create unique index emergency_set_standing on emergency_set (tenant_id) where ended_at is null;

create table emergency_code (
	tenant_id text not null,
	hash bytes not null,
	set_id text not null,
	primary key (tenant_id, hash),
	foreign key (tenant_id, set_id) references emergency_set (tenant_id, id)
);

-- When a person stops being one by themselves: those who came in by such codes.
alter table person add column expires_at bigint;

-- Whom a hold on a blueprint covers.
create index agent_blueprint on agent (tenant_id, blueprint) where ended_at is null;
