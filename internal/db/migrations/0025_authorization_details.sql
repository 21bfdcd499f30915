-- Types of authorization details (RFC 9396). The specification is JSON that no
-- statement looks into.
create table detail_type (
	tenant_id text not null,
	id text not null,
	name text not null,
	spec text not null,
	managed_by text not null,
	created_at bigint not null,
	changed_at bigint not null,
	ended_at bigint, -- when it was retired
	epoch bigint not null check (epoch > 0),
	primary key (tenant_id, id)
);

create unique index detail_type_name on detail_type (tenant_id, name) where ended_at is null;

-- What was granted beyond scopes, as a JSON array; nothing where no limit was
-- set, which for what a person has agreed to is none at all.
alter table oauth_grant add column details text;
alter table oauth_consent add column details text not null default '[]';
