-- Certificate authorities, X.509 and SSH, what they have certified, and keys
-- that encrypt and sign for others. Each belongs to a mount: '' is the tenant's
-- own, others are those of the door for Vault's clients.

create table pki_key (
	tenant_id text not null,
	id text not null,
	mount text not null,
	name text not null, -- '' for none
	algorithm text not null check (algorithm in ('ec-p256', 'ec-p384', 'ed25519', 'rsa-2048', 'rsa-3072', 'rsa-4096')),
	public bytes not null, -- SubjectPublicKeyInfo
	sealed bytes not null, -- PKCS #8
	created_at bigint not null,
	primary key (tenant_id, id)
);

create unique index pki_key_name on pki_key (tenant_id, mount, name) where name <> '';

create table pki_authority (
	tenant_id text not null,
	id text not null,
	mount text not null,
	kind text not null check (kind in ('x509', 'ssh')),
	name text not null, -- '' for none
	generation bigint not null check (generation > 0), -- of that name
	key_id text, -- none if only the certificate is known here
	certificate bytes, -- DER; none of an SSH authority
	subject text not null,
	options text not null, -- JSON
	issues_from bigint not null, -- the newest generation past this issues
	not_after bigint,
	revocations bigint not null default 0, -- how often something of it was revoked
	created_at bigint not null,
	epoch bigint not null default 1,
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index pki_authority_name on pki_authority (tenant_id, mount, kind, name, generation) where name <> '';
create index pki_authority_mount on pki_authority (tenant_id, mount, kind);

create table pki_role (
	tenant_id text not null,
	id text not null,
	mount text not null,
	kind text not null check (kind in ('x509', 'ssh')),
	name text not null,
	spec text not null, -- JSON
	created_at bigint not null,
	changed_at bigint not null,
	epoch bigint not null default 1,
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index pki_role_name on pki_role (tenant_id, mount, kind, name) where ended_at is null;

-- What an authority has signed. The row is written in the commit of its event
-- and never touched again, unless it is revoked.
create table pki_certificate (
	tenant_id text not null,
	authority_id text not null,
	serial text not null, -- hex of X.509, decimal of SSH
	mount text not null,
	kind text not null check (kind in ('x509', 'ssh')),
	role_id text not null, -- '' for none
	name text not null, -- the common name, or the key id
	names text not null, -- JSON list of alternative names, or of principals
	body bytes not null, -- as it was handed out
	subject text not null, -- to whom
	agent_id text not null, -- '' if not to an agent
	session_id text not null, -- '' if outside of one
	issued_at bigint not null,
	not_after bigint not null,
	revoked_at bigint,
	reason bigint not null default 0, -- RFC 5280, section 5.3.1
	cause text not null default '',
	primary key (tenant_id, authority_id, serial)
);

create index pki_certificate_mount on pki_certificate (tenant_id, mount, kind, serial);
create index pki_certificate_session on pki_certificate (tenant_id, session_id) where session_id <> '' and revoked_at is null;
create index pki_certificate_agent on pki_certificate (tenant_id, agent_id, not_after) where agent_id <> '' and revoked_at is null;
create index pki_certificate_revoked on pki_certificate (tenant_id, authority_id, not_after) where revoked_at is not null;
create index pki_certificate_over on pki_certificate (not_after);

-- The newest list of what an authority has revoked.
create table pki_crl (
	tenant_id text not null,
	authority_id text not null,
	number bigint not null check (number > 0),
	covers bigint not null, -- the authority's revocations that are on it
	next_update bigint not null,
	body bytes not null,
	primary key (tenant_id, authority_id)
);

-- What else is set on a mount.
create table pki_setting (
	tenant_id text not null,
	mount text not null,
	name text not null,
	document text not null, -- JSON
	changed_at bigint not null,
	primary key (tenant_id, mount, name)
);

create table transit_key (
	tenant_id text not null,
	id text not null,
	mount text not null,
	name text not null, -- '' is the key that others wrap theirs for
	type text not null check (type in ('aes128-gcm96', 'aes256-gcm96', 'chacha20-poly1305', 'ecdsa-p256', 'ecdsa-p384', 'ecdsa-p521', 'ed25519', 'rsa-2048', 'rsa-3072', 'rsa-4096', 'hmac')),
	spec text not null, -- JSON
	latest_version bigint not null check (latest_version > 0),
	rotates_at bigint, -- when it rotates by itself
	created_at bigint not null,
	epoch bigint not null default 1,
	ended_at bigint,
	primary key (tenant_id, id)
);

create unique index transit_key_name on transit_key (tenant_id, mount, name) where ended_at is null;
create index transit_key_due on transit_key (rotates_at) where rotates_at is not null and ended_at is null;

create table transit_version (
	tenant_id text not null,
	key_id text not null,
	version bigint not null check (version > 0),
	sealed bytes not null,
	public bytes, -- SubjectPublicKeyInfo of an asymmetric one
	created_at bigint not null,
	primary key (tenant_id, key_id, version),
	foreign key (tenant_id, key_id) references transit_key (tenant_id, id)
);
