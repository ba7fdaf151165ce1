# Brings the database to version $VERSION: each step in a transaction of its own, and once.
set -eu
psql="$PSQL -v ON_ERROR_STOP=1 -qAt"
$psql -c 'create table if not exists versions (version int primary key)' 2>/dev/null
have=$($psql -c 'select coalesce(max(version), 0) from versions')
while [ "$have" -lt "$VERSION" ]; do
    have=$((have + 1))
    echo "to version $have"
    $psql -1 -f "to-$have.sql" -c "insert into versions values ($have)"
done
