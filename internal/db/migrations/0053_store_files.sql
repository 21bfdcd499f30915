-- Stores, links and syncs that are kept in files: by which set of them.
alter table secret_store add column managed_by text not null default '';
alter table secret_link add column managed_by text not null default '';
alter table secret_link_folder add column managed_by text not null default '';
alter table secret_sync add column managed_by text not null default '';
