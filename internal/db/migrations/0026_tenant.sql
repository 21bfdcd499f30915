-- The organisations that this installation serves. The register is kept by the
-- default one, which is always there and has no beginning. A name is never given
-- a second time, so nothing is ever deleted here.
create table tenant (
	tenant_id text not null check (tenant_id = 'default'), -- who keeps the register
	id text not null,
	title text not null,
	status text not null check (status in ('active', 'disabled')),
	reason text not null, -- why it is disabled
	private_networks text not null, -- that its own settings may open, a JSON list
	created_at bigint,
	created_by text not null,
	changed_at bigint,
	primary key (tenant_id, id),
	check (id <> 'default' or status = 'active')
);

insert into tenant (tenant_id, id, title, status, reason, private_networks, created_by) values ('default', 'default', '', 'active', '', '[]', '');
