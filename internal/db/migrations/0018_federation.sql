-- The token that a grant was handed on from, so that what came of it ends when
-- that one token is revoked.
alter table oauth_grant add column parent_jti text;
create index oauth_grant_parent_jti on oauth_grant (tenant_id, parent_jti) where parent_jti is not null;

-- The issuers of others whose tokens count here, and for which agents.
create table trust (
	tenant_id text not null,
	id text not null,
	name text not null,
	issuer text not null,
	spec text not null, -- JSON
	managed_by text not null,
	created_at bigint not null,
	changed_at bigint not null,
	ended_at bigint,
	epoch bigint not null check (epoch > 0),
	primary key (tenant_id, id)
);

create unique index trust_name on trust (tenant_id, name) where ended_at is null;
create unique index trust_issuer on trust (tenant_id, issuer) where ended_at is null;
