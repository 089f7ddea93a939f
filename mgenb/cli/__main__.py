from mgenb.cli.main import main

main()
