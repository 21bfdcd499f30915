-- Where people are told that something waits for them.
create table channel (
	tenant_id text not null,
	id text not null,
	name text not null,
	kind text not null check (kind in ('email', 'slack', 'teams', 'webhook')),
	spec text not null, -- JSON
	managed_by text not null default '', -- apply/SET
	created_at bigint not null,
	created_by text not null,
	changed_at bigint not null,
	ended_at bigint,
	epoch bigint not null,
	failing_since bigint,
	failure text not null default '',
	primary key (tenant_id, id)
);

create unique index channel_name on channel (tenant_id, name) where ended_at is null;

-- What is to be said there: an event for a recipient, in the order of the log.
-- Those of one bundle are said in one message, whose id the bundle is.
create table channel_message (
	tenant_id text not null,
	id text not null,
	channel_id text not null,
	recipient text not null, -- '' for the channel itself
	event_id text not null,
	n bigint not null, -- the event's place in the log
	event text not null, -- JSON
	state text not null check (state in ('waiting', 'sent', 'dropped')),
	bundle text,
	attempts bigint not null default 0,
	created_at bigint not null,
	due_at bigint not null,
	ended_at bigint,
	primary key (tenant_id, id),
	unique (tenant_id, channel_id, recipient, event_id),
	foreign key (tenant_id, channel_id) references channel (tenant_id, id),
	check ((state = 'waiting') = (ended_at is null))
);

create index channel_message_line on channel_message (tenant_id, channel_id, recipient, n) where state = 'waiting';
create index channel_message_due on channel_message (due_at) where state = 'waiting';
create index channel_message_said on channel_message (tenant_id, channel_id, recipient, ended_at) where state = 'sent';
create index channel_message_old on channel_message (ended_at) where ended_at is not null;

-- The keys with which programs have asked for access, so that what is sent again
-- is asked once.
create table access_request_key (
	tenant_id text not null,
	requester text not null,
	key text not null, -- its digest
	body text not null, -- the digest of what was asked
	request_id text not null,
	created_at bigint not null,
	primary key (tenant_id, requester, key)
);

create index access_request_key_old on access_request_key (created_at);
