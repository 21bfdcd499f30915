-- Whether an agent was ever given anything of a resource, also what has ended.
create index access_grant_ended on access_grant (tenant_id, agent_id, resource_id) where ended_at is not null;
