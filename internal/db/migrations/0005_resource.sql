-- What agents reach. The specification is JSON that no statement looks into.
create table resource (
	tenant_id text not null,
	id text not null,
	name text not null,
	spec text not null,
	managed_by text not null,
	created_at bigint not null,
	changed_at bigint not null,
	ended_at bigint, -- when it was retired
	epoch bigint not null,
	primary key (tenant_id, id)
);

create unique index resource_name on resource (tenant_id, name) where ended_at is null;

-- A host and port belong to one resource of a tenant.
create table resource_host (
	tenant_id text not null,
	host text not null, -- host:port
	resource_id text not null,
	primary key (tenant_id, host),
	foreign key (tenant_id, resource_id) references resource (tenant_id, id)
);

create index resource_host_resource on resource_host (tenant_id, resource_id);
