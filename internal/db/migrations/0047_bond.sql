-- What a lease ends with, besides its session.
alter table lease add column grant_id text not null default ''; -- the permission that it was made on; '' for none
alter table lease add column authority_id text not null default ''; -- what the token came from with which it was made: a grant of the token service, a person's token; '' if it does not end with that

create index lease_grant on lease (tenant_id, grant_id) where ended_at is null and grant_id <> '';
create index lease_authority on lease (tenant_id, authority_id) where ended_at is null and authority_id <> '';

-- By what the values of leases are recognised where they do not belong: the keyed
-- digest of each.
create table lease_fingerprint (
	tenant_id text not null,
	digest bytes not null,
	lease_id text not null,
	field text not null,
	primary key (tenant_id, digest, lease_id, field)
);

-- Which node does a step that follows the end of a session.
alter table session_step add column claimed_by text not null default '';
create index session_step_claimed on session_step (claimed_by) where claimed_by <> '';
create index lease_claimed on lease (claimed_by) where state = 'revoking' and claimed_by is not null;
