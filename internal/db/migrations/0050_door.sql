-- While a mount is being disabled nothing is made below it any more.
alter table vault_mount add column closing_at bigint;

-- Who writes a configuration of a database at this moment: it is written in steps,
-- and one after the other.
create table database_turn (
	tenant_id text not null,
	mount_id text not null,
	name text not null,
	holder text not null,
	until bigint not null,
	primary key (tenant_id, mount_id, name)
);

-- Where else the log of an organisation is written to, as clients of Vault know it.
-- The place of each in the log is in audit_cursor.
create table audit_device (
	tenant_id text not null,
	id text not null,
	path text not null, -- with a slash at the end
	kind text not null check (kind in ('file', 'syslog', 'socket')),
	description text not null,
	options text not null, -- JSON
	local boolean not null,
	created_at bigint not null,
	failure text not null default '', -- why nothing can be written there; '' if it can
	failed_at bigint,
	primary key (tenant_id, id)
);

create unique index audit_device_path on audit_device (tenant_id, path);

-- Headers of requests that the log is to tell of.
create table audit_header (
	tenant_id text not null,
	name text not null, -- in small letters
	hashed boolean not null,
	primary key (tenant_id, name)
);

-- Log-ins by OpenID Connect that have come back: one does so once.
create table ticket_sign_in (
	tenant_id text not null,
	state bytes not null, -- a MAC
	mount_id text not null,
	expires_at bigint not null,
	primary key (tenant_id, state)
);

create index ticket_sign_in_expires on ticket_sign_in (expires_at);

-- The secrets of clients of OpenID Connect, by the mount that logs people in.
create table ticket_client (
	tenant_id text not null,
	mount_id text not null,
	id text not null,
	sealed bytes not null,
	created_at bigint not null,
	primary key (tenant_id, mount_id)
);

create unique index ticket_client_id on ticket_client (tenant_id, id);
