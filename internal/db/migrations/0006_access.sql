-- What agents may do. A grant is never changed, only ended.
create table access_grant (
	tenant_id text not null,
	id text not null,
	name text not null, -- of the one that has not ended
	agent_id text not null,
	resource_id text not null,
	actions text not null,
	purposes text not null,
	class text not null check (class in ('public', 'internal', 'confidential', 'restricted')),
	starts_at bigint,
	expires_at bigint,
	managed_by text not null,
	created_at bigint not null,
	created_by text not null,
	ended_at bigint,
	end_reason text,
	epoch bigint not null,
	primary key (tenant_id, id),
	check ((ended_at is null) = (end_reason is null)),
	check (starts_at is null or expires_at is null or starts_at < expires_at)
);

create unique index access_grant_name on access_grant (tenant_id, name) where ended_at is null;
create index access_grant_agent on access_grant (tenant_id, agent_id) where ended_at is null;
create index access_grant_resource on access_grant (tenant_id, resource_id) where ended_at is null;
create index access_grant_list on access_grant (tenant_id, created_at, id);
