-- What somebody asked for, and what became of it. That a request has expired
-- is a matter of time; lapsed_at says when that was put on record.
create table access_request (
	tenant_id text not null,
	id text not null,
	kind text not null,
	state text not null check (state in ('pending', 'approved', 'denied', 'cancelled')),
	requester text not null,
	agent_id text not null, -- '' for none
	session_id text not null, -- '' for none
	likeness text not null, -- the digest of what is asked for, and for whom
	spec text not null, -- JSON of what never changes
	offer text not null, -- JSON of what is on the table
	round bigint not null check (round > 0),
	document bytes not null, -- of what is on the table
	result text not null default '',
	note text not null default '',
	created_at bigint not null,
	expires_at bigint not null,
	escalate_at bigint,
	escalated_at bigint,
	lapsed_at bigint,
	decided_at bigint,
	decided_by text not null default '',
	primary key (tenant_id, id),
	check ((state = 'pending') = (decided_at is null)),
	check (lapsed_at is null or state = 'pending')
);

-- The same waits once.
create unique index access_request_likeness on access_request (tenant_id, likeness) where state = 'pending' and lapsed_at is null;
create index access_request_agent on access_request (tenant_id, agent_id) where state = 'pending' and lapsed_at is null;
create index access_request_session on access_request (tenant_id, session_id) where state = 'pending' and lapsed_at is null;
create index access_request_due on access_request (expires_at) where state = 'pending' and lapsed_at is null;
create index access_request_escalate on access_request (escalate_at) where state = 'pending' and lapsed_at is null;
create index access_request_list on access_request (tenant_id, created_at, id);

-- What people said, once each in a round.
create table access_vote (
	tenant_id text not null,
	request_id text not null,
	round bigint not null,
	approver text not null,
	in_place_of text not null,
	verdict text not null check (verdict in ('approved', 'denied')),
	at bigint not null,
	note text not null,
	document bytes not null,
	assertion text, -- JSON
	primary key (tenant_id, request_id, round, approver),
	foreign key (tenant_id, request_id) references access_request (tenant_id, id)
);

-- Who decides in the place of somebody who is away.
create table person_absence (
	tenant_id text not null,
	person_id text not null,
	deputy_id text not null,
	until bigint not null,
	created_at bigint not null,
	created_by text not null,
	primary key (tenant_id, person_id),
	check (person_id <> deputy_id)
);

create index person_absence_deputy on person_absence (tenant_id, deputy_id);
