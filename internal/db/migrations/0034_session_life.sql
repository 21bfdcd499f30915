-- A session that nobody uses ends: idle_us is how long that takes, null for no
-- such end, and idle_at is when it will have taken so long. A session of a
-- session ends with it. How it is bound to what runs in it is as its launcher
-- says: to a tree of processes, of which executable is the SHA-256 of the
-- root's file, to a user, or to nothing.
alter table session add column idle_us bigint check (idle_us > 0);
alter table session add column idle_at bigint;
alter table session add column parent_id text;
alter table session add column depth bigint not null default 0 check (depth between 0 and 4);
alter table session add column bound text not null default 'none' check (bound in ('process', 'user', 'none'));
alter table session add column executable text;

create index session_idle on session (idle_at) where ended_at is null and idle_at is not null;
create index session_child on session (tenant_id, parent_id) where ended_at is null and parent_id is not null;

-- What is still to be done outside of the database for a session that has
-- ended. The row goes when it is done.
create table session_step (
	tenant_id text not null,
	session_id text not null,
	part text not null,
	due_at bigint not null,
	tries bigint not null default 0,
	error text not null default '', -- of the last try
	primary key (tenant_id, session_id, part)
);

create index session_step_due on session_step (due_at);

insert into session_step (tenant_id, session_id, part, due_at)
	select g.tenant_id, g.session_id, 'recordings', s.ended_at from gateway_session g
	join session s on s.tenant_id = g.tenant_id and s.id = g.session_id
	where g.closed_at is null and s.ended_at is not null;

-- The sweep ends the sessions of agents whose own time is over.
create index agent_expires on agent (expires_at) where expires_at is not null and ended_at is null;
