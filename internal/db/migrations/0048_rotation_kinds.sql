-- Two more kinds of what is rotated: keys that the target makes itself, and
-- certificates, which end by themselves.
create table rotation_next (
	tenant_id text not null,
	secret_id text not null,
	target_id text not null, -- of certificates: by which role they are certified
	kind text not null check (kind in ('two_users', 'single_slot', 'keys', 'certificate')),
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
	expires_at bigint, -- when the current version ends by itself; none if it does not
	previous_expires_at bigint,
	primary key (tenant_id, secret_id),
	foreign key (tenant_id, secret_id) references secret (tenant_id, id)
);

insert into rotation_next (tenant_id, secret_id, target_id, kind, spec, step, slot, pending, current, previous, generation, epoch,
		grace_until, due_at, next_try_at, tries, last_error, held_by, held_until, created_at, created_by, rotated_at, switched_at,
		applying_at, late_at, refused_us, forced_by, forced_reason, laggards, ended_at)
	select tenant_id, secret_id, target_id, kind, spec, step, slot, pending, current, previous, generation, epoch,
		grace_until, due_at, next_try_at, tries, last_error, held_by, held_until, created_at, created_by, rotated_at, switched_at,
		applying_at, late_at, refused_us, forced_by, forced_reason, laggards, ended_at from rotation;

drop table rotation;

alter table rotation_next rename to rotation;

create index rotation_due on rotation (next_try_at) where ended_at is null;
create index rotation_of_target on rotation (tenant_id, target_id) where ended_at is null;
