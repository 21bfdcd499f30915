-- One task of one agent. A session that has an end is never opened again.
create table session (
	tenant_id text not null,
	id text not null,
	agent_id text not null,
	purpose text not null,
	task bytes, -- what the task is, sealed
	ambient boolean not null, -- opened by a request that named no task
	key_thumbprint text, -- x5t#S256 of the launcher's certificate
	opened_at bigint not null,
	opened_by text not null,
	expires_at bigint not null,
	epoch bigint not null check (epoch > 0),
	ended_at bigint,
	end_cause text,
	calls bigint, -- through the gateway, counted after the end
	primary key (tenant_id, id),
	check (expires_at > opened_at),
	check ((ended_at is null) = (end_cause is null))
);

-- A certificate stands for one session, whatever its tenant: it is how the
-- gateway finds the session before it knows anything else.
create unique index session_key on session (key_thumbprint) where ended_at is null and key_thumbprint is not null;
create unique index session_ambient on session (tenant_id, agent_id, purpose) where ended_at is null and ambient;
create index session_open on session (tenant_id, agent_id) where ended_at is null;
create index session_due on session (expires_at) where ended_at is null;
create index session_list on session (tenant_id, opened_at, id);
create index session_agent on session (tenant_id, agent_id, opened_at, id);
