-- A grant may confine the arguments of its actions, belong to a session, come of
-- a request, cover nothing until it is activated, have budgets, and fall asleep
-- when nobody uses it.
alter table access_grant add column kind text not null default 'standing' check (kind in ('standing', 'eligible'));
alter table access_grant add column parameters text; -- JSON: the parameter → its values
alter table access_grant add column session_id text; -- that it ends with
alter table access_grant add column request_id text; -- that it came of
alter table access_grant add column activated_from text; -- the eligible grant that it was made of
alter table access_grant add column budgets text; -- JSON
alter table access_grant add column unused_after bigint; -- seconds
alter table access_grant add column used_at bigint; -- within the hour
alter table access_grant add column announced_at bigint; -- that it will be suspended
alter table access_grant add column suspended_at bigint;

create index access_grant_session on access_grant (tenant_id, session_id) where ended_at is null and session_id is not null;
create index access_grant_activated on access_grant (tenant_id, activated_from) where ended_at is null and activated_from is not null;
create index access_grant_unused on access_grant (tenant_id, id) where ended_at is null and unused_after is not null;

-- What has been taken of budgets, with what is reserved. There is a row for each
-- grant that has any, and one for each task of a token that has, until it expires.
create table access_spent (
	tenant_id text not null,
	id text not null, -- of the grant
	calls bigint not null default 0 check (calls >= 0),
	rows_out bigint not null default 0 check (rows_out >= 0),
	records bigint not null default 0 check (records >= 0),
	bytes_out bigint not null default 0 check (bytes_out >= 0),
	money bigint not null default 0 check (money >= 0), -- millionths
	fan_out bigint not null default 0 check (fan_out >= 0),
	begun_at bigint, -- the first use
	expires_at bigint, -- of what is no grant
	primary key (tenant_id, id)
);

create index access_spent_due on access_spent (expires_at) where expires_at is not null;

-- Who works on a grant that is somebody else's, by delegation: one for each agent
-- in each session.
create table access_delegate (
	tenant_id text not null,
	grant_id text not null,
	session_id text not null,
	agent_id text not null,
	primary key (tenant_id, grant_id, session_id, agent_id)
);

create index access_delegate_session on access_delegate (tenant_id, session_id);
