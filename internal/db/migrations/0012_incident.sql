-- Containments: what was done to cut an agent off, and how fast.
create table containment (
	tenant_id text not null,
	id text not null,
	agent_id text not null,
	contained_by text not null,
	reason text not null,
	at bigint not null,
	steps text not null default '[]',
	zero_us bigint, -- null while its steps go on
	event_id text not null default '', -- of the certificate
	primary key (tenant_id, id)
);

create index containment_agent on containment (tenant_id, agent_id, at);
create index containment_open on containment (at) where zero_us is null;
