-- By which provider a person came in, so that it ends along with the provider.
alter table person_token add column provider_id text;

create index person_token_provider on person_token (tenant_id, provider_id) where provider_id is not null and ended_at is null;
