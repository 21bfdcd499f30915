-- Secrets whose versions Estover makes and applies to a target: what each version
-- is at the moment, by which user it logs in, and how far the next one has come.

alter table secret_version add column phase text not null default ''
	check (phase in ('', 'pending', 'current', 'previous', 'retiring', 'retired', 'abandoned'));
alter table secret_version add column slot text not null default '' check (slot in ('', 'a', 'b'));
alter table secret_version add column grace_until bigint;

create table rotation (
	tenant_id text not null,
	secret_id text not null,
	target_id text not null,
	kind text not null check (kind in ('two_users', 'single_slot')),
	spec text not null, -- JSON: users, fields, template, schedule
	step text not null check (step in ('idle', 'staged', 'applied', 'verified', 'grace', 'retiring', 'scrambling', 'aborting')),
	slot text not null check (slot in ('', 'a', 'b')), -- that serves
	pending bigint not null default 0, -- the version on its way to be the current one
	current bigint not null default 0,
	previous bigint not null default 0, -- the version on its way out
	generation bigint not null default 1,
	epoch bigint not null default 0, -- raised when a version is to retire: every node answers it with its counts
	grace_until bigint,
	due_at bigint, -- none: only when somebody says so
	next_try_at bigint not null,
	tries bigint not null default 0,
	last_error text not null default '',
	held_by text not null default '',
	held_until bigint not null default 0,
	created_at bigint not null,
	created_by text not null,
	rotated_at bigint, -- when the current version became it
	switched_at bigint, -- when a version last became the previous one
	applying_at bigint, -- when the pending version was first sent to the target
	late_at bigint, -- when it was told that a version does not retire
	refused_us bigint not null default 0, -- of one user: how long log-ins were refused the last time
	forced_by text not null default '',
	forced_reason text not null default '',
	laggards text not null default '', -- JSON: who held up the retirement when it was last looked
	ended_at bigint,
	primary key (tenant_id, secret_id),
	foreign key (tenant_id, secret_id) references secret (tenant_id, id)
);

create index rotation_due on rotation (next_try_at) where ended_at is null;
create index rotation_of_target on rotation (tenant_id, target_id) where ended_at is null;

-- How many rotations are under way at a target, and whether they are stopped there.
create table rotation_target (
	tenant_id text not null,
	target_id text not null,
	under_way bigint not null default 0 check (under_way >= 0),
	stopped_at bigint,
	stopped_by text not null default '', -- the secret whose new version did not log in
	reason text not null default '',
	primary key (tenant_id, target_id)
);

-- The nodes that inject secrets, each until it has to have said again that it is there.
create table rotation_node (
	node text primary key,
	until bigint not null
);

-- What a node has to say of a version that is to retire: that from here on it uses it no
-- more, and what it still has open with it.
create table rotation_ack (
	tenant_id text not null,
	secret_id text not null,
	node text not null,
	version bigint not null,
	epoch bigint not null, -- of the last time that it was asked to use it no more
	at bigint not null,
	open text not null, -- JSON: whose connections, and how many
	primary key (tenant_id, secret_id, node)
);

-- What was ended and changed since somebody may have had it who should not, each
-- thing a row, so that whoever comes after a crash goes on with it.
create table emergency_rotation (
	tenant_id text not null,
	id text not null,
	scope text not null check (scope in ('agent', 'resource', 'incident', 'secret')),
	target text not null,
	since bigint, -- none: whatever there is on record
	reason text not null,
	keep boolean not null, -- old versions live while others use them
	asked_by text not null,
	at bigint not null,
	planned_at bigint, -- when the items were found, once it was cut off
	done_at bigint,
	event_id text not null default '', -- of the last report
	primary key (tenant_id, id)
);

create index emergency_rotation_open on emergency_rotation (at) where done_at is null;

create table emergency_rotation_item (
	tenant_id text not null,
	emergency_id text not null,
	n bigint not null,
	kind text not null check (kind in ('containment', 'leases', 'certificates', 'secret')),
	ref text not null, -- agent:…, resource:…, or the path of a secret
	secret_id text not null default '',
	version bigint not null default 0, -- the newest that was seen
	why text not null default '', -- who had it
	state text not null check (state in ('pending', 'by_hand', 'failed', 'done')),
	note text not null default '',
	tries bigint not null default 0,
	begun_at bigint,
	done_at bigint,
	primary key (tenant_id, emergency_id, n),
	foreign key (tenant_id, emergency_id) references emergency_rotation (tenant_id, id)
);
