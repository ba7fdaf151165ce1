// A program that is slow to start, as application servers are: it listens after a while, and says
// so with a newline on descriptor 3.
const fs = require('fs');
const http = require('http');

setTimeout(() => {
  const server = http.createServer((request, response) => response.end(`${process.pid} slow\n`));
  server.on('error', (error) => {
    fs.appendFileSync('binds', `${process.pid} ${error.message}\n`);
    process.exit(1);
  });
  server.listen(Number(process.env.PORT), '127.0.0.1', () => {
    fs.appendFileSync('binds', `${process.pid} bound ${process.env.PORT}\n`);
    fs.writeSync(3, '\n');
  });
}, 1500);
