-- The domains whose key KMS refused, which are few: they are looked for each minute.

-- +goose NO TRANSACTION
-- +goose Up
set lock_timeout = 0;
drop index concurrently if exists domain_inaccessible;
create index concurrently domain_inaccessible on domain (domain_uid) where state = 'KEY_INACCESSIBLE';
reset lock_timeout;
