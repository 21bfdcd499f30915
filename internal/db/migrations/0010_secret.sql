-- Secrets and their versions. Values are sealed; the row that ties a path and
-- its destinations to an id, and to the state of each version, carries a MAC.

create table secret (
	tenant_id text not null,
	id text not null,
	path text not null,
	class text not null check (class in ('public', 'internal', 'confidential', 'restricted')),
	risk text not null check (risk in ('low', 'standard', 'high')),
	owner text not null,
	destinations text not null, -- JSON list of host:port
	description text not null,
	current_version bigint not null check (current_version >= 0),
	created_at bigint not null,
	updated_at bigint not null,
	epoch bigint not null default 1,
	ended_at bigint,
	mac bytes not null,
	primary key (tenant_id, id)
);

create unique index secret_path on secret (tenant_id, path) where ended_at is null;

create table secret_version (
	tenant_id text not null,
	secret_id text not null,
	version bigint not null check (version > 0),
	fields text not null, -- JSON list of names
	sealed bytes, -- the values; none when destroyed
	created_at bigint not null,
	created_by text not null,
	deleted_at bigint,
	destroyed_at bigint,
	primary key (tenant_id, secret_id, version),
	foreign key (tenant_id, secret_id) references secret (tenant_id, id),
	check ((sealed is null) = (destroyed_at is not null))
);

-- By which a value that was seen somewhere is recognised: a keyed digest.
create table secret_fingerprint (
	tenant_id text not null,
	digest bytes not null,
	secret_id text not null,
	version bigint not null,
	field text not null,
	primary key (tenant_id, digest, secret_id, version, field),
	foreign key (tenant_id, secret_id, version) references secret_version (tenant_id, secret_id, version)
);

-- Who used which version, and how.
create table secret_use (
	tenant_id text not null,
	secret_id text not null,
	version bigint not null,
	subject text not null,
	session_id text not null,
	via text not null check (via in ('gateway', 'plaintext')),
	first_at bigint not null,
	last_at bigint not null,
	count bigint not null check (count > 0),
	primary key (tenant_id, secret_id, version, subject, session_id, via)
);

create index secret_use_subject on secret_use (tenant_id, subject, last_at);
create index secret_use_session on secret_use (tenant_id, session_id) where session_id <> '';
