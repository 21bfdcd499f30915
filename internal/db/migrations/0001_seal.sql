-- The chain of keys, from the root down. What belongs to the installation and
-- not to an organisation stands under the tenant '*'.
create table seal_root (
	tenant_id text not null check (tenant_id = '*'),
	id text not null, -- a fingerprint of the root key
	kind text not null, -- of its source
	params text not null, -- what the source needs to find it again; not secret
	created_at bigint not null,
	primary key (tenant_id, id)
);

create table seal_kek (
	tenant_id text not null check (tenant_id = '*'),
	version bigint not null check (version > 0),
	created_at bigint not null,
	primary key (tenant_id, version)
);

create table seal_kek_wrap (
	tenant_id text not null,
	version bigint not null,
	root_id text not null,
	wrapped bytes not null,
	primary key (tenant_id, version, root_id),
	foreign key (tenant_id, version) references seal_kek (tenant_id, version),
	foreign key (tenant_id, root_id) references seal_root (tenant_id, id)
);

create table seal_dek (
	tenant_id text not null check (tenant_id <> '*' and tenant_id <> ''),
	class text not null check (class <> ''),
	version bigint not null check (version > 0),
	kek_version bigint not null,
	wrapped bytes not null,
	created_at bigint not null,
	use_from bigint not null, -- from when on values are sealed with it
	reserved bigint not null default 0, -- messages that nodes have set aside
	primary key (tenant_id, class, version)
);

create index seal_dek_kek on seal_dek (kek_version);

-- The keys that sign. A row stays when its private half is gone, because what
-- it signed may still have to be verified.
create table signing_key (
	tenant_id text not null check (tenant_id <> '*' and tenant_id <> ''),
	id text not null, -- the public key's thumbprint
	purpose text not null,
	generation bigint not null check (generation > 0),
	public bytes not null,
	sealed bytes, -- the private half; null once it has been destroyed
	created_at bigint not null,
	use_from bigint not null, -- from when on it signs
	revoked_at bigint,
	mac bytes not null, -- over all of the above but sealed
	primary key (tenant_id, id),
	unique (tenant_id, purpose, generation)
);
