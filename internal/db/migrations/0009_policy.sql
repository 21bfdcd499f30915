-- Bundles of policies as they were pushed. A revision is never changed: its
-- digest is its name.
create table policy_revision (
	tenant_id text not null check (tenant_id <> ''),
	digest text not null check (digest <> ''), -- SHA-256 of the bundle, in hex
	files text not null, -- JSON: a list of {path, text}
	size bigint not null,
	note text not null, -- what whoever pushed it says of it
	pushed_by text not null,
	pushed_at bigint not null,
	primary key (tenant_id, digest)
);

create index policy_revision_pushed on policy_revision (tenant_id, pushed_at);

-- Which revision was active when. The highest number is the active one.
create table policy_activation (
	tenant_id text not null,
	number bigint not null check (number > 0),
	digest text not null,
	kind text not null check (kind in ('activate', 'rollback')),
	reason text not null,
	activated_by text not null,
	activated_at bigint not null,
	primary key (tenant_id, number),
	foreign key (tenant_id, digest) references policy_revision (tenant_id, digest)
);
