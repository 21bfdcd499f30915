-- What OAuth needs to know of an agent beside its credentials, as JSON; null
-- for an agent that has no settings of that kind.
alter table agent add column client text;

-- One more kind of credential: a name in a certificate that an authority
-- vouches for. And a credential may be kept for an emergency.
create table agent_credential_next (
	tenant_id text not null,
	id text not null,
	agent_id text not null,
	kind text not null check (kind in ('secret', 'jwks', 'certificate')),
	label text not null,
	hash bytes, -- of a secret: HMAC-SHA-256 under the pepper
	jwks text, -- of public keys
	certificate text, -- of a certificate: the name and the authorities, as JSON
	backup boolean not null default false,
	created_at bigint not null,
	created_by text not null,
	expires_at bigint,
	ended_at bigint,
	last_used_at bigint,
	epoch bigint not null,
	primary key (tenant_id, id),
	foreign key (tenant_id, agent_id) references agent (tenant_id, id),
	check ((kind = 'secret') = (hash is not null)),
	check ((kind = 'jwks') = (jwks is not null)),
	check ((kind = 'certificate') = (certificate is not null))
);

insert into agent_credential_next (tenant_id, id, agent_id, kind, label, hash, jwks, certificate, backup,
		created_at, created_by, expires_at, ended_at, last_used_at, epoch)
	select tenant_id, id, agent_id, kind, label, hash, jwks, null, false,
		created_at, created_by, expires_at, ended_at, last_used_at, epoch from agent_credential;

drop table agent_credential;

alter table agent_credential_next rename to agent_credential;

create index agent_credential_live on agent_credential (tenant_id, agent_id) where ended_at is null;
