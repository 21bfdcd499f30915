-- A certificate is revoked by its serial number, also where somebody has destroyed
-- the version that had it.
alter table rotation add column pending_serial text not null default '';
alter table rotation add column current_serial text not null default '';
alter table rotation add column previous_serial text not null default '';
