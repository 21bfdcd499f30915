-- Where things lie behind the Vault-compatible door.
create table vault_mount (
	tenant_id text not null,
	id text not null,
	section text not null check (section in ('secret', 'auth')),
	path text not null, -- with a slash at the end
	kind text not null,
	accessor text not null,
	uuid text not null,
	base text not null default '', -- of kv: the path below which its secrets lie
	spec text not null, -- JSON: what one says of it
	created_at bigint not null,
	epoch bigint not null default 1,
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index vault_mount_path on vault_mount (tenant_id, section, path) where ended_at is null;

-- One mount of a tenant is changed at a time: no path may lie within another.
create table vault_mount_order (
	tenant_id text not null,
	n bigint not null,
	primary key (tenant_id)
);

-- Where a mount went when it was moved.
create table vault_mount_move (
	tenant_id text not null,
	id text not null,
	mount_id text not null,
	source text not null,
	target text not null,
	at bigint not null,
	primary key (tenant_id, id)
);

-- Policies of the door, as they were written, and policies of passwords.
create table vault_policy (
	tenant_id text not null,
	kind text not null check (kind in ('acl', 'password')),
	name text not null,
	body text not null,
	created_at bigint not null,
	changed_at bigint not null,
	epoch bigint not null default 1,
	primary key (tenant_id, kind, name)
);

-- What the versions of a secret are kept to, and what is said of it beside.
alter table secret add column max_versions bigint not null default 0;
alter table secret add column cas_required boolean not null default false;
alter table secret add column delete_after bigint not null default 0; -- microseconds
alter table secret add column custom text not null default '{}'; -- JSON map of strings
alter table secret_version add column delete_at bigint; -- when it is deleted by itself
